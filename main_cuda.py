"""Train the same network on the GPU, with CuPy: the same program, on another device."""

import sys

from main2 import main

if __name__ == "__main__":
    sys.exit(main("cuda", "predictions-cuda.png"))
