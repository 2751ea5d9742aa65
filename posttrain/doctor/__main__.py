"""`python -m posttrain.doctor +recipe=NAME [KEY=VALUE ...]`: `python -m posttrain ... job=doctor`, in fewer letters."""

import sys

from posttrain.__main__ import main

if __name__ == "__main__":
    sys.argv.append("job=doctor")
    main()
