"""Calls that are held while servers, the store and lines die at random: nothing may be lost, nothing said twice."""
