"""Engines that map a function over tasks: in this process, in worker processes, or on Ray."""
