"""The commands: glue between the command line and the rooms below, one file each."""
