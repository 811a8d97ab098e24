# A link that leads to one of two files, and to the other one some moments later.
#     python3 flips.py LINK FILE FILE
import os, random, sys, time

link, *files = sys.argv[1:]
print("flips", flush=True)
for i in range(1000000):
    os.symlink(files[i % 2], link + ".new")
    os.replace(link + ".new", link)
    time.sleep(random.uniform(0, 0.003))
