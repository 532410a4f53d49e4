"""Where pieces of work run: in this process, in processes beside it, or on Ray."""
