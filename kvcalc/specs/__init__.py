"""Specs: from YAML, config.json or a model hub to an architecture, and from YAML to hardware."""
