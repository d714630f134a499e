"""Names and signatures of other libraries, implemented with this one."""
