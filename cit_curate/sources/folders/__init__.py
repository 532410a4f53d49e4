"""Folders of images, with a text beside each image, or with a metadata file that names them."""
