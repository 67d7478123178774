"""The image gateway: events, the image list, the REST API, and the workers that pull and import."""
