# A name server that is told what to do.     python3 names.py ADDRESS FILE
# FILE has one line, read for each question: "right IPV4" is the answer, "none" the name does not
# exist, "fail" the server cannot say, "garbage" are bytes that are no answer, "silent" is none.
# Prints "ready", then the line and the name of each question for an IPv4 address.
import os, socket, sys

address, path = sys.argv[1:]
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind((address, 53))
print("ready", flush=True)


def name_of(question):
    labels, at = [], 12
    while question[at]:
        labels.append(question[at + 1 : at + 1 + question[at]].decode("latin-1"))
        at += 1 + question[at]
    return ".".join(labels), at + 5


def answer(question, word, *what):
    """RFC 1035, section 4.1."""
    end = name_of(question)[1]
    is_a = question[end - 4 : end - 2] == b"\0\1"
    code = {"none": 3, "fail": 2}.get(word, 0)
    record = b""
    if word == "right" and is_a:
        record = b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + socket.inet_aton(what[0])
    head = question[:2] + bytes((0x81, 0x80 | code, 0, 1, 0, bool(record), 0, 0, 0, 0))
    return head + question[12:end] + record


while True:
    question, client = sock.recvfrom(512)
    with open(path) as f:
        words = f.read().split()
    name, end = name_of(question)
    if question[end - 4 : end - 2] == b"\0\1":
        print(*words, name, flush=True)
    if words[0] == "garbage":
        sock.sendto(question[:2] + os.urandom(40), client)
    elif words[0] != "silent":
        sock.sendto(answer(question, *words), client)
