/* SPDX-License-Identifier: PostgreSQL */
/*
 * A certificate for the throw-away server: self-signed, P-256, two days.
 *
 * Context: the bench process.
 */
#include "config.h"

#include <fcntl.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <stdio.h>
#include <unistd.h>

#include "pgctl/bench.h"

#define VALID_S (2 * 24 * 3600)

static EVP_PKEY *make_key(void)
{
	EVP_PKEY *key = NULL;
	EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_id(EVP_PKEY_EC, NULL);
	bool ok = ctx != NULL && EVP_PKEY_keygen_init(ctx) == 1 &&
		  EVP_PKEY_CTX_set_ec_paramgen_curve_nid(ctx, NID_X9_62_prime256v1) == 1 &&
		  EVP_PKEY_keygen(ctx, &key) == 1;
	EVP_PKEY_CTX_free(ctx);
	return ok ? key : NULL;
}

static X509 *make_cert(EVP_PKEY *key)
{
	X509 *cert = X509_new();
	if (cert == NULL)
		return NULL;
	X509_NAME *name = X509_get_subject_name(cert);
	bool ok = X509_set_version(cert, 2) == 1 &&
		  ASN1_INTEGER_set(X509_get_serialNumber(cert), 1) == 1 &&
		  X509_gmtime_adj(X509_getm_notBefore(cert), -3600) != NULL &&
		  X509_gmtime_adj(X509_getm_notAfter(cert), VALID_S) != NULL &&
		  X509_set_pubkey(cert, key) == 1 &&
		  X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC,
			  (const unsigned char *)"localhost", -1, -1, 0) == 1 &&
		  X509_set_issuer_name(cert, name) == 1 && X509_sign(cert, key, EVP_sha256()) > 0;
	if (!ok) {
		X509_free(cert);
		return NULL;
	}
	return cert;
}

static FILE *create(const char *file)
{
	int fd = open(file, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	FILE *f = fd >= 0 ? fdopen(fd, "w") : NULL;
	if (f == NULL && fd >= 0)
		close(fd);
	return f;
}

int bench_make_certificate(const char *cert_file, const char *key_file)
{
	EVP_PKEY *key = make_key();
	X509 *cert = key != NULL ? make_cert(key) : NULL;
	FILE *c = create(cert_file), *k = create(key_file);
	bool ok = cert != NULL && c != NULL && k != NULL && PEM_write_X509(c, cert) == 1 &&
		  PEM_write_PrivateKey(k, key, NULL, NULL, 0, NULL, NULL) == 1;
	if (c != NULL)
		ok = fclose(c) == 0 && ok;
	if (k != NULL)
		ok = fclose(k) == 0 && ok;
	X509_free(cert);
	EVP_PKEY_free(key);
	return ok ? 0 : -1;
}
