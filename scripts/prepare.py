"""`flair2-exp prepare`, for people who work in a checkout."""

from __future__ import annotations

import sys

from flair2_exp.cli.main import main

if __name__ == "__main__":
    sys.argv[1:1] = ["prepare"]
    main()
