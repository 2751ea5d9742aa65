"""`posttrain doctor +recipe=NAME [KEY=VALUE ...]`: the same as `posttrain doctor`."""

import sys

from posttrain.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["doctor", *sys.argv[1:]]))
