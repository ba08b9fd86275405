"""The demo data: 10,681 real poses, drawn as clothed figures, so that everything runs without a
download."""
