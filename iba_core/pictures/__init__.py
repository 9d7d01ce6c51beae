"""Read and prepare images; draw plots and overlays."""
