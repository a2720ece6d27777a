"""Files that start a run on SageMaker, SkyPilot, SLURM, Kubernetes (JobSet) or Docker; nothing is started."""
