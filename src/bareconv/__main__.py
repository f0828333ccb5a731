"""``python -m bareconv VERB``."""

from bareconv.cli import main

main()
