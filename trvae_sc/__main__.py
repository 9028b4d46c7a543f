"""``python -m trvae_sc``: the command line."""

from trvae_sc.cli import main

raise SystemExit(main())
