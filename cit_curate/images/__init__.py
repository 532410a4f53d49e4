"""From an image's URI to a checked picture, without trusting any of its bytes."""
