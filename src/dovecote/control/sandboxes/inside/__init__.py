"""Programs that the host puts into a sandbox to run code contexts there. Nothing here runs in the server."""
