"""All the cases, in the order in which they run."""

from alone import ALONE
from fixed_rate import CASE
from footprint import FOOTPRINT
from tables import TABLES

CASES = (*(table.case() for table in TABLES), CASE, *FOOTPRINT, *ALONE)
