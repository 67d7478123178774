"""The content-addressed store: every byte under its BLAKE3 name, durable and verified."""
