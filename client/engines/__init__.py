"""Engines that are not ours, as servers behind the gateway: what differs between them, one file each."""
