"""The engine directory: its manifest, its graphs, its dial."""
