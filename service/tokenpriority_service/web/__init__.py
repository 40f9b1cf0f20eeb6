"""HTTP: from bytes on a socket to the service and back."""
