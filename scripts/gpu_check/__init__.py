"""What only a GPU can show, checked within minutes: `python -m scripts.gpu_check`."""
