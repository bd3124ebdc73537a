"""Programs that run an artefact on a device, and how they are built; sources travel with the package."""
