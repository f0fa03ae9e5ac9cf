"""The gateway's own HTTP side: who comes in, every route, and what it says about itself."""
