"""The arithmetic of a layer, by device; nothing outside this package knows how it is done."""
