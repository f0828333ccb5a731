"""What runs in a process of its own while it is measured: our engines, other libraries, behind one small protocol.

All but ``ours`` must also run under an interpreter in which bareconv is not installed: they import the standard
library, NumPy, their own package, ``bareconv.host`` and each other.
"""
