/* A setuid-root program that says whom it runs as: root, unless no_new_privs is set. */
#include <stdio.h>
#include <unistd.h>

int main(void)
{
	printf("Effective uid: %d\n", geteuid());
	return 0;
}
