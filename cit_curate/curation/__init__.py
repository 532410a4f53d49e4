"""From scanned captions to kept pairs: `lane_scan` reads and collects, `rule` decides."""
