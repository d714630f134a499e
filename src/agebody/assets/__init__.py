"""From files and numbers to a validated `BodyAsset`."""
