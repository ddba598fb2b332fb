"""Where jobs run: slots of this machine, SLURM, Ray.

A job is the ordinary command of one run, in its folder. So an engine only starts commands, says
whether they wait, run or have ended, and stops them; what became of a run stands in its folder.
"""
