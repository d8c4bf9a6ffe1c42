"""Find out what breaks INT8, and return it to float: blame, repair, and whether INT8 can be faster at all."""
