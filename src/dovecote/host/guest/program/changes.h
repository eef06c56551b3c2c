/* What tells of changes, and the directories that it watches for them. */
#ifndef CHANGES_H
#define CHANGES_H
#include "guest.h"

/* -- changes.c */

void change_found(const char *path, bool is_dir, bool has_content); /* in a directory that has just been entered */
void change_missed(void);

/* -- places.c: directories that are watched; paths are below the one that was asked for, which is "" */

void places_open(const char *root, bool recursive);   /* fails if it cannot watch all of it */
enum coverage { WHOLE, PART, GONE };                  /* PART: what bounds watches left some out */
enum coverage places_again(void);                     /* after inotify lost events: looks at all directories anew */
int places_fd(void);
const char *place_of(int wd);                         /* NULL if it is not watched any more */
const char *place_absolute(const char *path);         /* until the next call */
void place_forget(int wd);
void places_enter(const char *path);                  /* a new directory: watches it, and tells what is in it already */
void places_rename(const char *from, const char *to); /* with all that are below */
void places_drop(const char *path);                   /* likewise */
void place_passed(size_t bytes);                      /* so many of inotify's bytes are about to be handled */
bool place_was_seen(int wd, const char *name);        /* told of already, when its directory was entered; once */

#endif
