"""Setting a federation up: its folder, certificates, kits for sites, and who is admitted."""
