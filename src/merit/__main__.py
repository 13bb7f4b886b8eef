"""`python -m merit`: how jobs are started, whatever is on the PATH."""

from merit.cli.main import main

if __name__ == "__main__":
    main()
