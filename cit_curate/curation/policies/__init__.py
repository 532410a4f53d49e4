"""What is kept beyond CiT's threshold: one policy a module, a pure function in a chain."""
