#!/bin/sh
# Makes the certificates that the TLS tests use, good ones and bad ones.     certs.sh DIRECTORY
# Each NAME.pem has its key in NAME.key, if it has one. Prints nothing unless something fails.
set -e
cd "$1"
exec 2>openssl.log
trap 'status=$?; [ $status -eq 0 ] || tail -n 5 openssl.log' EXIT
: >index
cat >conf <<'END'
[any]
database = index
new_certs_dir = .
rand_serial = yes
unique_subject = no
default_md = sha256
policy = policy
default_crl_days = 1000
[policy]
commonName = optional
[req]
distinguished_name = name
[name]
END

past=20200101000000Z
recent=20240101000000Z
coming=20490101000000Z
later=20491231000000Z

# request NAME COMMON-NAME [KEY-OPTIONS]
request() {
    if [ $# -lt 3 ]; then set -- "$1" "$2" "ec -pkeyopt ec_paramgen_curve:P-256"; fi
    openssl req -config conf -newkey $3 -nodes -keyout "$1.key" -out "$1.csr" -subj "/CN=$2"
}

# sign NAME ISSUER EXTENSIONS [START END [HASH]]
sign() {
    printf '%b' "$3" >ext
    openssl ca -batch -config conf -name any -cert "$2.pem" -keyfile "$2.key" -in "$1.csr" \
        -notext -extfile ext -startdate "${4:-$recent}" -enddate "${5:-$coming}" \
        -md "${6:-sha256}" -out "$1.pem"
}

# authority NAME
authority() {
    openssl req -config conf -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \
        -keyout "$1.key" -out "$1.pem" -subj "/CN=$1" -days 3650 \
        -addext 'basicConstraints=critical,CA:TRUE' -addext 'keyUsage=keyCertSign,cRLSign'
}

names='subjectAltName=DNS:localhost,DNS:loop.test,DNS:*.wild.test\n'
serves='extendedKeyUsage=serverAuth\n'
dials='extendedKeyUsage=clientAuth\n'
cam='subjectAltName=DNS:cam-1.cams.test,URI:spiffe://cams.test/cam-1\n'
is_ca='basicConstraints=critical,CA:TRUE\n'

authority ca
authority other

request server localhost && sign server ca "$names$serves"
request server2 localhost && sign server2 ca "$names$serves"
request server_rsa localhost rsa:2048 && sign server_rsa ca "$names$serves"
request expired localhost && sign expired ca "$names$serves" "$past" "$recent"
request future localhost && sign future ca "$names$serves" "$coming" "$later"
request unknown localhost && sign unknown other "$names$serves"
request weak localhost rsa:1024 && sign weak ca "$names$serves"
request sha1 localhost && sign sha1 ca "$names$serves" "$recent" "$coming" sha1
request cn_only localhost && sign cn_only ca "$serves"
request address 127.0.0.1 && sign address ca "subjectAltName=IP:127.0.0.1\n$serves"
request wrong_use localhost && sign wrong_use ca "$names$dials"
openssl req -config conf -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout self.key \
    -out self.pem -subj /CN=localhost -days 1000 -addext 'subjectAltName=DNS:localhost'

request both localhost && sign both ca "${names}extendedKeyUsage=serverAuth,clientAuth\n"
request cam cam-1 && sign cam ca "$cam$dials"
request cam2 cam-2 && sign cam2 ca "subjectAltName=DNS:cam-2.cams.test\n$dials"
request cam_unknown cam-1 && sign cam_unknown other "$cam$dials"
request cam_expired cam-1 && sign cam_expired ca "$cam$dials" "$past" "$recent"
request cam_server cam-1 && sign cam_server ca "$cam$serves"
request cam_revoked cam-1 && sign cam_revoked ca "$cam$dials"
request cam_authority sub && sign cam_authority ca "$is_ca"
openssl ca -config conf -name any -cert ca.pem -keyfile ca.key -revoke cam_revoked.pem
openssl ca -config conf -name any -cert ca.pem -keyfile ca.key -gencrl -out crl.pem
cat ca.pem crl.pem >ca_crl.pem
cat crl.pem ca.pem >crl_ca.pem
cat ca.pem crl.pem other.pem >ca_crl_other.pem
{ cat ca.pem crl.pem && echo && echo '# the end'; } >ca_crl_note.pem
{ cat ca.pem && head -n 3 crl.pem; } >ca_crl_cut.pem

# One below the other, deeper than anybody needs.
issuer=ca
: >chain
for i in 1 2 3 4 5 6 7 8 9 10; do
    request "deep$i" "deep$i" && sign "deep$i" "$issuer" "$is_ca"
    cat "deep$i.pem" chain >chain.new && mv chain.new chain
    issuer=deep$i
done
request cam_deep cam-1 && sign cam_deep deep10 "$cam$dials" && cat chain >>cam_deep.pem

# More names than fit in a handshake message of 16 KiB, or even in 64.
request cam_big cam-1
{
    printf 'subjectAltName=@many\n%b[many]\n' "$dials"
    i=0
    while [ $i -lt 1300 ]; do
        i=$((i + 1))
        printf 'DNS.%d=a-rather-long-name-that-takes-up-room-%08d.cams.test\n' $i $i
    done
} >many
sign cam_big ca "$(cat many)\n"

openssl x509 -in server.pem -outform DER -out server.der
openssl x509 -in cam.pem -outform DER -out cam.der
openssl pkey -in server.key -outform DER -out server.key.der
openssl pkey -in server.key -aes128 -passout pass:x -out server_encrypted.key
: >empty.pem
echo 'no certificate' >text.pem
