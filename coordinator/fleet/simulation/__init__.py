"""`campaign --simulate N`: a campaign over virtual contributors on one machine, with the code of production."""
