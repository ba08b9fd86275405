"""The demo data: 10,681 real poses, drawn as clothed figures; it needs no download."""
