"""Images in; plots and overlays out."""
