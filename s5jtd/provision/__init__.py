"""Makes volumes of blank disks: finds them, shows a plan, and never touches one that holds anything."""
