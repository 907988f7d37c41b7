"""The laws an ELBO must obey, one file each."""
