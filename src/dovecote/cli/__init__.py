"""The command line. Talks to the server through `dovecote.sdk`; only what an operator does on the server's
own machine knows `dovecote.main` and `dovecote.installation`.
"""


def run() -> None:
    """Entry point of `dovecote`."""
    from dovecote.cli.app import main

    main()
