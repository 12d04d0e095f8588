"""Whether anything is lost, left over or left hanging when clients leave and parts of the service die."""
