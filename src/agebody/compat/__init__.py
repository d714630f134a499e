"""Other libraries' names and signatures over this one."""
