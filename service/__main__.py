"""`python -m service`. Light, because every process of the image pool runs this file once more."""

from service.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
