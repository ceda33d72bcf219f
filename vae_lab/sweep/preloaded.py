"""What the fork server finds out before any job starts, so that no job has to.

The commit is then that of the code which all jobs run, also where somebody changes it meanwhile.
"""

from PIL import Image

from vae_lab.config.check import adapter, own_kinds
from vae_lab.runs.folder import commit, hardware, versions
from vae_lab.training.build import READERS

Image.preinit()
commit()
hardware()
versions()
for kind in own_kinds(READERS).values():
    adapter(kind)
