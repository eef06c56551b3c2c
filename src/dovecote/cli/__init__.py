"""The command line. Talks to the server through `dovecote.sdk`; only what starts or stops one knows `dovecote.main`."""


def run() -> None:
    """Entry point of `dovecote`."""
    from dovecote.cli.app import main

    main()
