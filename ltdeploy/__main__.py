"""``python -m ltdeploy``: the command line."""

from .cli.main import main

main()
